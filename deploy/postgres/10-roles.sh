#!/bin/sh
# Two roles, because history is append-only: the owner migrates, the application may not alter it.
# Runs once, on an empty data folder, as the image's superuser.
set -eu

psql --set=ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname postgres \
    --set=owner_password="$POSTGRES_OWNER_PASSWORD" \
    --set=app_password="$POSTGRES_APP_PASSWORD" <<'SQL'
CREATE ROLE suanpan_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE suanpan_app LOGIN PASSWORD :'app_password';
CREATE DATABASE suanpan OWNER suanpan_owner TEMPLATE template0 ENCODING 'UTF8'
    LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LC_COLLATE 'C' LC_CTYPE 'C';
REVOKE ALL ON DATABASE suanpan FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE suanpan TO suanpan_app;
SQL
