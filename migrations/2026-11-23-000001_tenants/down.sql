DROP TABLE request_ids;
DROP TABLE frozen_requests;
DROP TABLE integrations;
DROP TABLE api_tokens;
DROP TABLE organizations;
