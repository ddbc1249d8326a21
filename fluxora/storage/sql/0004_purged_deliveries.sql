-- Up to where deliveries of an endpoint have been purged that had arrived: what it has no delivery of there may be one of
-- those. Of endpoints that there are already nobody knows better than that it lies below the log's end.
ALTER TABLE webhook_endpoints ADD COLUMN purged_position bigint NOT NULL DEFAULT 0;
UPDATE webhook_endpoints SET purged_position = (SELECT position FROM log_head);
