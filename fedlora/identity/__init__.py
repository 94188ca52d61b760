"""Who is who between servers and clients: an authority of our own, one-time invitations, and the server's registry."""
