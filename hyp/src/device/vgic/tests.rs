//! Tests of the vGIC against a model of list registers.
