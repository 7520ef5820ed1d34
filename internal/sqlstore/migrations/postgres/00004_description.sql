-- +goose Up
-- Empty is none. What a row's MAC covers has the description only where it is not empty, so the
-- rows that are there stay as they are.
ALTER TABLE keys ADD COLUMN description TEXT COLLATE "C" NOT NULL DEFAULT '';

-- 1: the organization was deleted. Rows are never removed while a node may be behind: its row
-- says what an organization counts as that was never put.
ALTER TABLE organizations ADD COLUMN deleted BIGINT NOT NULL DEFAULT 0;

-- Operators find keys of any organization, newest first, and filter the audit log.
CREATE INDEX keys_all_newest ON keys (created_at DESC, id DESC);
CREATE INDEX keys_unrevoked ON keys (created_at DESC, id DESC) WHERE state <> 'revoked';
CREATE INDEX keys_hint ON keys (hint, created_at DESC, id DESC);
CREATE INDEX keys_creator ON keys (created_by, created_at DESC, id DESC);
CREATE INDEX audit_organization ON audit (organization_id, sequence);
CREATE INDEX audit_actor ON audit (actor, sequence);
CREATE INDEX audit_action ON audit (action, sequence);
CREATE INDEX audit_rejected ON audit (outcome, sequence) WHERE outcome <> 'done';
CREATE INDEX audit_at ON audit (at, sequence);

-- A program that knows none of these columns, and compares no set hash (V8), gets no lease.
UPDATE lineage SET protocol = 2;
