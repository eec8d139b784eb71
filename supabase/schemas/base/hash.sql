-- Hashes of secrets and of identifiers.

create function private.sha256_hex(p_text text) returns text
language sql immutable
set search_path = ''
as $$ select encode(sha256(convert_to(p_text, 'UTF8')), 'hex') $$;
comment on function private.sha256_hex(text) is 'SHA-256 of a text encoded as UTF-8, in lower-case hex; null for null.';
