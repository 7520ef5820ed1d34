-- +goose Up
-- A node of the version before this one knows neither timelines nor the gate. Its statements name a table that is gone now, so its
-- lease runs out; until then no write may be answered early, which is what a timeline that is not settled means.
LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE;

CREATE VIEW timeline AS
    SELECT CAST(('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32) AS BIGINT) AS now;

CREATE TABLE lineage (
    one      BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    settled  BIGINT NOT NULL, -- the last timeline on which every lease granted before it began is known to be over
    protocol BIGINT NOT NULL  -- the oldest version of the lease protocol that may serve
);
INSERT INTO lineage SELECT 1, CASE WHEN EXISTS (SELECT 1 FROM nodes) THEN 0 ELSE now END, 1 FROM timeline;

DROP TABLE nodes;
CREATE TABLE serving_nodes (
    node_id     TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    address     TEXT   COLLATE "C" NOT NULL,
    version     TEXT   COLLATE "C" NOT NULL,
    protocol    BIGINT NOT NULL,
    lease       BIGINT NOT NULL, -- microseconds
    applied     BIGINT NOT NULL,
    renewed_at  BIGINT NOT NULL,
    seal_key_id TEXT   COLLATE "C" NOT NULL, -- over what the node says of itself
    seal        BYTEA  NOT NULL
) WITH (fillfactor = 50);
