DROP FUNCTION sealed_samples();
DROP TABLE encryption_keys;
DROP TABLE schema_minimum;
