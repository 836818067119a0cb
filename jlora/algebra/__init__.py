"""Operations on adapters (merge, scale, sum, stack, reduce the rank, extract): pure functions of trees."""
