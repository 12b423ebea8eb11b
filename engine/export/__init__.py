"""A trained detector out of the checkpoint, in the formats of other tools."""
