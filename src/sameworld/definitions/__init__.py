"""What a world says: frozen data without I/O, engines or clocks."""
