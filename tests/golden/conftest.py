"""The scripts that write the golden files need torch; they hold no tests."""

collect_ignore = ["make.py", "make_models.py"]
