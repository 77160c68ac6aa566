"""How an example becomes the bytes of a record: the same bytes wherever it is done."""

from tensorflow_datasets.core import example_serializer


class DeterministicSerializer(example_serializer.ExampleSerializer):
    """Writes the fields of an example in one order, which TFDS leaves to chance.

    A class of its own, since workers of Apache Beam are sent its name and import it.
    """

    def serialize_example(self, example) -> bytes:
        """The record of an example, as a serialized tf.train.Example."""
        return self.get_tf_example(example).SerializeToString(deterministic=True)
