DROP TABLE timers;
DROP TABLE jobs;
DROP FUNCTION drop_delivery_partitions(date);
DROP FUNCTION ensure_delivery_partitions(date, date);
DROP TABLE deliveries;
DROP TABLE events;
DROP TABLE event_heads;
