"""What is predicted of candidates from those that were measured or estimated."""
