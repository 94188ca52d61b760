"""With which key a token was used: whoever did not get the reply may ask again, with the same key."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; of a token that was used before, nobody knows the key."""
    op.add_column("tokens", sa.Column("key_sha256", sa.String(64), nullable=True))
