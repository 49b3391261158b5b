"""What judges a text: the paper's prompt, categories, verdicts, and how good they are."""
