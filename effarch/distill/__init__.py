"""Teacher to student: losses, weight transfer, stages."""
