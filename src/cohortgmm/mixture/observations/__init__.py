"""What is observed of the cells: features, noise, background, completeness."""
