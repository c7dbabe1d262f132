"""What a trained model is worth: scores, tables, reports."""
