"""The data owner's side: the client app and its resident worker."""
