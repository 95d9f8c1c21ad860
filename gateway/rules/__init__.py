"""What we decide: pure functions, values in and values out; `now` is an argument of every rule."""
