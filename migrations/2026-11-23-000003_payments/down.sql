DROP TABLE overpayments;
DROP TABLE disputes;
DROP TABLE refunds;
DROP TABLE payment_attempts;
DROP TABLE payments;
