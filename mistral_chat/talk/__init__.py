"""A talk: what it says, what of it the model is told, how it is kept."""
