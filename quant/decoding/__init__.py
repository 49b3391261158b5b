"""What is done with logits: ids one after the other, and what continuations weigh."""
