"""Models on this computer, and how they come here."""
