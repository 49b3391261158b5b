"""Tests of the application, on fakes and on tiny files; one file uses the default model."""
