"""One golden case per file: its inputs, the independent code that answered them once (`.npz`), and ours."""
