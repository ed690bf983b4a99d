DROP FUNCTION check_identity();
DROP FUNCTION present_identity();
DROP TABLE installation;
DROP FUNCTION sealed_samples();
DROP TABLE encryption_keys;
DROP TABLE schema_minimum;
