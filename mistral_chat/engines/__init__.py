"""Messages in, typed events out."""
