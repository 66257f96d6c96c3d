# %% [markdown]
# # why_likelihoods_go_wrong

# %%
print(1)
