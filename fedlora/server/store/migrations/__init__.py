"""How a run store's database came to be: one revision for each change of its tables (Alembic)."""
