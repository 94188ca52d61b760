#!/bin/sh
# Starts a client; at its first start it makes its home, takes a policy, and joins the server with its token.
#   FEDLORA_SITE        the client's home
#   FEDLORA_POLICY      the policy for a new home; @DATA@ in it becomes FEDLORA_DATA
#   FEDLORA_DATA        the file with this site's data
#   FEDLORA_TOKEN_FILE  the token; it is waited for
#   FEDLORA_HEALTH      HOST:PORT of the health endpoint
set -eu
umask 077
if [ ! -f "$FEDLORA_SITE/policy.yaml" ]; then
  fedlora client init "$FEDLORA_SITE"
  sed "s|@DATA@|$FEDLORA_DATA|" "$FEDLORA_POLICY" > "$FEDLORA_SITE/policy.yaml"
fi
if [ ! -f "$FEDLORA_SITE/identity/server.json" ]; then
  echo "waiting for a token in $FEDLORA_TOKEN_FILE"
  until [ -f "$FEDLORA_TOKEN_FILE" ]; do sleep 1; done
  until fedlora client join --home "$FEDLORA_SITE" --token-file "$FEDLORA_TOKEN_FILE"; do
    [ $? -eq 51 ] || exit 50  # 51: the server is not up yet; anything else needs a person
    sleep 2
  done
fi
exec fedlora client run --home "$FEDLORA_SITE" --health "$FEDLORA_HEALTH"
