DROP TABLE stripe_budgets;
DROP TABLE stripe_requests;
DROP TABLE stripe_contacts;
DROP TABLE integrations;
