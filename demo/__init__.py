"""The parts of the page: what it hears (`hearing`), how it is drawn (`pictures`, `results`), and its tabs (`tabs`)."""
