"""Config loading, training, evaluation and everything that needs the whole experiment."""
