DROP TABLE request_ids;
DROP TABLE api_tokens;
DROP TABLE organizations;
