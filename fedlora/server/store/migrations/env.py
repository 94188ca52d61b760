"""Alembic runs this file for each upgrade; `fedlora.server.store.database` hands it an open connection."""

from alembic import context

from fedlora.server.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
)
with context.begin_transaction():
    context.run_migrations()
