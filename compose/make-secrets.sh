#!/bin/sh
# Writes the passwords that compose.production.yaml wants into compose/secrets/, random, where there is none
# yet. Keep the directory out of backups that others read; `.gitignore` there keeps it out of git.
set -eu

directory=$(cd "$(dirname "$0")" && pwd)/secrets
# The files are bound into containers whose users are not yours, so they are readable; the directory
# keeps others out.
mkdir -p "$directory"
chmod 700 "$directory"
printf '*\n' >"$directory/.gitignore"
for name in elastic_password elastic_kibana_password elastic_collector_password grafana_admin_password; do
    file=$directory/$name
    if [ -s "$file" ]; then
        echo "kept     $file"
        continue
    fi
    # Letters and digits: nothing that YAML, a URL or a shell would read as more than text. The first
    # is a letter, so that no reader takes it for a number.
    random=$(LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 31)
    [ "${#random}" -eq 31 ] || { echo "no random numbers from /dev/urandom" >&2; exit 1; }
    printf 'p%s' "$random" >"$file"
    chmod 644 "$file"
    echo "written  $file"
done
