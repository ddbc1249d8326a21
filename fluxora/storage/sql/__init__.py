"""Migrations: `NNNN_name.sql`, applied in order by `fluxora.storage.migrate`; an applied file is never edited."""
