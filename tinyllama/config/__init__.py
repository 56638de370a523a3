"""What a run is: the knobs, the gate they pass, and the rules between them."""
