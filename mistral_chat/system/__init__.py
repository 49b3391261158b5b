"""What the computer gives: a person's files, locks between processes, the console."""
