DROP TABLE checkout_sessions;
DROP TABLE payment_methods;
DROP TABLE customers;
