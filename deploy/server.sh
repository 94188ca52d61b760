#!/bin/sh
# Starts a server; at its first start it makes certificates, and a token for each client that is named.
#   FEDLORA_HOME      the server's home
#   FEDLORA_HOSTS     names under which clients reach it, separated by spaces
#   FEDLORA_CLIENTS   clients to enrol at the first start (may be empty)
#   FEDLORA_TOKENS    a folder for their tokens
#   FEDLORA_LINK, FEDLORA_ENROLMENT, FEDLORA_OPERATOR    where to listen, HOST:PORT
#   FEDLORA_ADDRESS   HOST:PORT at which clients reach the enrolment
set -eu
umask 077
if [ ! -f "$FEDLORA_HOME/ca/ca.crt" ]; then
  hosts=""
  for host in $FEDLORA_HOSTS; do hosts="$hosts --host $host"; done
  # shellcheck disable=SC2086  # one word a host
  fedlora ca init "$FEDLORA_HOME" $hosts
fi
for client in ${FEDLORA_CLIENTS:-}; do
  token="$FEDLORA_TOKENS/$client.token"
  if [ ! -f "$FEDLORA_HOME/enrolled-$client" ]; then
    rm -f "$token"
    fedlora server enroll "$client" --home "$FEDLORA_HOME" --address "$FEDLORA_ADDRESS" --out "$token"
    : > "$FEDLORA_HOME/enrolled-$client"
  fi
done
exec fedlora server run --home "$FEDLORA_HOME" \
  --link "$FEDLORA_LINK" --enrolment "$FEDLORA_ENROLMENT" --operator "$FEDLORA_OPERATOR"
