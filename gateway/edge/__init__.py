"""HTTP in: parse, call one flow function, render."""
