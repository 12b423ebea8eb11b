"""What a detector looked at: attention, features, evidence, and how far such maps can be trusted."""
