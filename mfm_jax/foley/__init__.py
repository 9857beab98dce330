"""The Foley world: a procedural world of seeded clips, and what is trained and scored on it."""
