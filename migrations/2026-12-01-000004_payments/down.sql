DROP TABLE overpayments;
DROP TABLE disputes;
DROP TABLE refunds;
DROP TABLE charges;
DROP TABLE payment_attempts;
DROP TABLE payments;
