"""What the stage `report` is made of: reading, wording, tables, charts and the page's files."""
