"""The detector, its losses and its weights. From `data` it imports the contract only; never `engine`."""
