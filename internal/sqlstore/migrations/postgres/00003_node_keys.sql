-- +goose Up
-- Which master keys there are, so that another key under the same id is told from a forgery. A
-- fingerprint proves that two programs have the same key and reveals nothing of it.
CREATE TABLE master_keys (
    id            TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    fingerprint   TEXT   COLLATE "C" NOT NULL,
    signing_since BIGINT NOT NULL, -- since when rows are authenticated under it; 0 = never yet
    asked_at      BIGINT NOT NULL  -- when a rotation asked the nodes to have it
);

-- The keys a node has, " id:fingerprint id:fingerprint "; empty = a program of an older version,
-- which does not say.
ALTER TABLE serving_nodes ADD COLUMN master_keys TEXT COLLATE "C" NOT NULL DEFAULT '';
