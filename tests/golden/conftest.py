"""The script that writes the golden files needs torch; it holds no tests."""

collect_ignore = ["make.py"]
